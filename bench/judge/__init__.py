"""PASS, FAIL or INCONCLUSIVE: `gate` judges one figure against one budget, `budgets` all of a report."""
