"""Jobs on the workers of a Dask cluster, which see the same file system.

Reference: Dask: Parallel Computation with Blocked algorithms and Task Scheduling (Rocklin, 2015),
https://doi.org/10.25080/Majora-7b98e3ed-013
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import Field

from flowdiff.core import Job, Launcher, Outcome, PartConfig, UserError, run_job

__all__ = ["DaskLauncher"]

_PATIENCE = 60.0
"""Seconds that jobs have to save and stop."""


class DaskLauncher(Launcher):
    """A task for each job, each in a process of its own on the worker."""

    class Config(PartConfig):
        """Settings of the launcher."""

        scheduler: str = Field(
            "",
            description="address of the scheduler, such as tcp://host:8786; none for workers "
            "of its own on this machine",
        )
        workers: int = Field(2, ge=1, description="workers of its own")
        timeout: float = Field(30.0, gt=0, description="seconds to wait for the scheduler")

    config: Config

    def run(self, jobs: Sequence[Job], ended: Callable[[Job, Outcome], None]) -> None:
        if not jobs:
            return
        from distributed import Client, LocalCluster, as_completed, wait

        own = self.config
        cluster = None
        if not own.scheduler:
            cluster = LocalCluster(
                n_workers=own.workers, threads_per_worker=1, dashboard_address=None
            )
        try:
            client = Client(cluster or own.scheduler, timeout=own.timeout)
        except (OSError, ValueError) as error:
            if cluster is not None:
                cluster.close()
            raise UserError(f"launcher dask: no scheduler at {own.scheduler}: {error}") from error
        stop = jobs[0].log.parent / ".stop"
        stop.unlink(missing_ok=True)
        with client:
            # A job is no pure function of its command: it goes on where it was stopped.
            futures = {
                client.submit(
                    run_job, job, stop, key=f"{job.name}-{index}", pure=False, retries=0
                ): job
                for index, job in enumerate(jobs)
            }
            try:
                for future in as_completed(futures):
                    lost = future.exception()
                    outcome = future.result() if lost is None else Outcome(None, str(lost))
                    ended(futures[future], outcome)
            except BaseException:
                # What has begun saves and stops; what waits is taken back.
                stop.touch()
                running = [f for f in futures if f.status == "pending"]
                wait(running, timeout=_PATIENCE)
                raise
            finally:
                stop.unlink(missing_ok=True)
                client.cancel(list(futures))
                if cluster is not None:
                    cluster.close()
