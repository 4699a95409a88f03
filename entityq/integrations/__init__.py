"""What users import where they use another library: the core imports none of these."""
