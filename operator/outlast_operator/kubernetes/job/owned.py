"""Objects of one job, found or made by name. An object of another owner under such a name is never changed or taken.

Look first, make what is missing: a quota or a webhook answers a creation before the API server notices that the object
exists.
"""

from __future__ import annotations

from typing import Any

from outlast_operator.kubernetes.cluster.api import CORE, Api, ApiError
from outlast_operator.kubernetes.job.refusals import name_taken
from outlast_operator.kubernetes.manifests.names import JobRef, is_owned

Json = dict[str, Any]


def find(api: Api, ref: JobRef, plural: str, kind: str, name: str) -> Json | None:
    """The job's object of that name, None where there is none. Raises `ApiError`, also where another owner has it."""
    try:
        found = api.get(CORE, ref.namespace, plural, name)
    except ApiError as error:
        if error.not_found:
            return None
        raise
    if not is_owned(found, ref):
        raise name_taken(kind, name)
    return found


def find_or_make(api: Api, ref: JobRef, plural: str, wanted: Json) -> Json:
    """The job's object as it is recorded. Raises `ApiError`, see `find`."""
    found = find(api, ref, plural, wanted["kind"], wanted["metadata"]["name"])
    return api.create(CORE, ref.namespace, plural, wanted) if found is None else found


def of_uid(patch: Json, uid: str) -> Json:
    """The patch, refused by the API server where an object of another uid has the name by then."""
    return {**patch, "metadata": {**patch.get("metadata", {}), "uid": uid}}
