"""Files fetched over the network into a data folder: checksums, progress, and going on where a transfer broke off."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from data_partitions.errors import DataError


class Remote(NamedTuple):
    """A file on the network: where it is, "md5:…" or "sha256:…", where it belongs in the data folder.

    members: of an archive, what to unpack beside it ([]: everything); None: not an archive.
    """

    url: str
    checksum: str
    path: str
    members: list[str] | None = None


def fetch(remotes: list[Remote], data_dir: Path) -> None:
    """Download what is not there yet, verified and unpacked. Raises DataError that says which files belong where.

    A transfer that broke off is continued by the next call; a file with the wrong checksum is not kept.
    """
    with warnings.catch_warnings():
        # requests warns of newer companions than it was tested with.
        warnings.simplefilter("ignore")
        import pooch  # type: ignore[import-untyped]
        from requests import HTTPError, RequestException

    pooch.get_logger().setLevel("WARNING")
    for remote in remotes:
        target, unpack = data_dir / remote.path, None
        if remote.members is not None:
            archive = pooch.Unzip if remote.path.endswith(".zip") else pooch.Untar
            unpack = archive(members=remote.members or None, extract_dir=".")
        try:
            pooch.retrieve(
                remote.url,
                remote.checksum,
                fname=target.name,
                path=target.parent,
                processor=unpack,
                downloader=_resuming(target.with_name(f"{target.name}.part")),
            )
        except (RequestException, OSError, ValueError) as error:
            if isinstance(error, HTTPError) and error.response is not None:
                reason = f"the server answered {error.response.status_code}"
            elif isinstance(error, RequestException):
                reason = "there is no connection, or it broke off"
            else:
                # pooch raises a bare ValueError for a wrong checksum only.
                reason = str(error) if isinstance(error, OSError) else f"its checksum is not {remote.checksum}"
            if target.is_file():
                reason = f"{target} is there, but its checksum is not {remote.checksum}, and {reason}"
            files = ", ".join(f"{one.url} as {data_dir / one.path}" for one in remotes)
            raise DataError(f"download of {remote.url} failed: {reason}; try again, or put in place {files}") from error


def _resuming(partial: Path) -> Callable[[str, str, object], None]:
    """A pooch downloader that keeps what has arrived in `partial` and asks the server only for the rest."""

    def download(url: str, output_file: str, pooch_instance: object) -> None:
        from pooch import HTTPDownloader
        from requests import HTTPError

        with partial.open("ab") as file:

            def start_over(response: Any, **_: object) -> None:
                if response.status_code == 200:
                    file.truncate(0)

            headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={file.tell()}-"} if file.tell() else {})
            downloader = HTTPDownloader(
                progressbar=True, chunk_size=1 << 16, headers=headers, hooks={"response": start_over}
            )
            try:
                downloader(url, file, pooch_instance)
            except HTTPError as error:
                # 416: the server has nothing beyond what is here, so this is the whole file; its checksum will tell.
                if error.response is None or error.response.status_code != 416:
                    raise
            finally:
                if not file.tell():
                    partial.unlink()
        partial.replace(output_file)

    return download
