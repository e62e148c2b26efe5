"""What the credentials may do in a bucket, found out by doing it: a policy can't be read by those whom it binds."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from botocore.exceptions import ClientError

from comd_api.exit_codes import UserError
from comd_trainer.store.s3_errors import RIGHTS, code_of, is_denied, is_missing, is_taken, right_of
from comd_trainer.store.stores import PROBE, MissingRightsError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

DEEDS = {"s3:ListBucket": "list", "s3:GetObject": "read", "s3:PutObject": "write", "s3:DeleteObject": "delete"}
"""Everything that a store does, by the right that it needs."""


class Refusal(NamedTuple):
    right: str
    """That is missing: of the bucket, or of the key that objects are encrypted with."""
    words: str


def probe_rights(
    client: "S3Client", *, bucket: str, key: str, as_written: Mapping[str, Any], uri: str, field: str
) -> None:
    """Lists beside the object `key`, makes it, reads it, tries to make it again, and deletes it. `uri`: the store's; `as_written`:
    further arguments of puts.

    Raises:
        UserError: names every right that is missing; or the service does not keep conditional puts.
        ClientError, BotoCoreError: anything but a missing right, for `s3_errors` to explain.
    """
    refused: dict[str, Refusal] = {}

    def allowed(attempt: Callable[[], object]) -> bool:
        try:
            attempt()
        except ClientError as error:
            if is_taken(error) or is_missing(error):
                return True
            if not is_denied(error):
                raise
            deed = DEEDS[RIGHTS[error.operation_name]]
            refused.setdefault(deed, Refusal(right_of(error), f"{code_of(error)} on {error.operation_name}"))
            return False
        return True

    def make() -> None:
        client.put_object(Bucket=bucket, Key=key, Body=PROBE, IfNoneMatch="*", **as_written)

    def read() -> None:
        found = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        if found != PROBE:
            raise UserError(f"{field} ({uri}): what was written reads back as something else; use another service")

    above = key.rpartition("/")[0]
    allowed(lambda: client.list_objects_v2(Bucket=bucket, Prefix=f"{above}/", MaxKeys=1))
    made = allowed(make)
    try:
        # An object that is not there is "missing" to who may list, else "denied": then it is taken for what it most likely is.
        allowed(read)
        if made:
            _refuse_second(make, field=field, uri=uri)
    finally:
        allowed(lambda: client.delete_object(Bucket=bucket, Key=key))  # One that is not there: allowed just as well.
    if refused:
        raise MissingRightsError(f"{field} ({uri}): {_sentence(refused, bucket=bucket, uri=uri)}", deeds=set(refused))


def _refuse_second(make: Callable[[], None], *, field: str, uri: str) -> None:
    """A service that knows no conditional puts takes the second one too, and then two writers would not be kept apart."""
    try:
        make()
    except ClientError as error:
        if is_taken(error):
            return
        raise
    raise UserError(
        f"{field} ({uri}): the service overwrites an object that was to be written only if absent (If-None-Match), "
        "so that two writers would not be kept apart; use a service or a version with conditional writes"
    )


def _sentence(refused: Mapping[str, Refusal], *, bucket: str, uri: str) -> str:
    may = _listed([deed for deed in DEEDS.values() if deed not in refused], last="and")
    may_not = _listed([deed for deed in DEEDS.values() if deed in refused], last="or")
    told = f"may {may} but not {may_not}" if may else f"may not {may_not}"
    rights = list(dict.fromkeys(refused[deed].right for deed in DEEDS.values() if deed in refused))
    objects = _listed([right for right in rights if right in DEEDS and right != "s3:ListBucket"], last="and")
    keys = _listed([right for right in rights if right.startswith("kms:")], last="and")
    mend = [f"s3:ListBucket on s3://{bucket}"] if "s3:ListBucket" in rights else []
    mend += [f"{objects} on {uri}/*"] if objects else []
    mend += [f"{keys} on the key that the objects are encrypted with"] if keys else []
    return f"the credentials {told} ({', '.join(one.words for one in refused.values())}); allow {' and '.join(mend)}"


def _listed(words: list[str], *, last: str) -> str:
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else "".join(words)
