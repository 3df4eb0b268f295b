"""The runtime over Kubernetes pods. The only place that knows the Kubernetes client; kopf is not known here.

api.py       requests as plain JSON, counted        cache.py    what watches have told: jobs and pods
pods.py      a pod, as the planner sees it (pure)   status.py   the planner's memory <-> status (pure)
acceptance.py  which spec is in force (pure)        events.py   what users are told
observer.py  ObservedJob from cache and servers     executor.py actions
runtime.py   the two behind the interface           loop.py     one loop a job
lease.py     who leads                              controller.py   all jobs of this operator
"""
