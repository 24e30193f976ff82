"""Updates that somebody holds, without the truth behind them: their files and the attacks on them."""
