"""What a runner asks of the Kubernetes API: the pods of its namespace."""
