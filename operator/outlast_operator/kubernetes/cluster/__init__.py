"""What the operator shares among all jobs of a cluster: API client, cache, Lease, clock, pools."""
