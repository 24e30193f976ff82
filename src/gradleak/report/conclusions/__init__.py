"""From records to statements: pooled scores, verdicts, comparisons. Knows no markup."""
