"""What a TrainingJob is made of in Kubernetes: pure builders of plain JSON objects.

Rules:
 1. Pure: no client, no clock, no randomness. The same arguments give the same object, the same name included, so that
    two operators that build the same pod collide at the API server instead of making two.
 2. The user's template comes first: what it says is kept, what it leaves out gets a default. Only what the job cannot
    work without is forced: names, Outlast's labels, owner, restart policy, OUTLAST_* variables.
 3. Every object belongs to its job by an owner reference, so that deleting the job needs no operator.
"""
