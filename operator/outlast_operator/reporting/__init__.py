"""From what a run left to its report: data, words, curves, figures and page."""
