"""Jacobians, their products and spectra, least squares on residuals."""
