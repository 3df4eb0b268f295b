"""The runtime over Kubernetes pods. The only place that knows the Kubernetes client; only the handlers know kopf.

handlers.py    kopf's events into the cache         controller.py  all jobs of this operator
cluster/       API client, cache, Lease, clock      job/           one job: its loop, observer, executor, record, status
manifests/     pods, Services, Secrets, claims      client.py      the client for users
"""
