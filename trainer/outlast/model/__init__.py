"""The model as one flat vector, and its optimizer."""
