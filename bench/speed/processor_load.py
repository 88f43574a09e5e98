"""Who used the processor while something was measured."""

from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadShares:
    """Shares of the whole processor's time, 0-1.

    Attributes:
        own: This process with its children that have ended.
        others: Other programs and the system.
        stolen: Taken by the host of a virtual machine; 0 where the system does not say.
    """

    own: float
    others: float
    stolen: float


class ProcessorLoad:
    """Starts to watch when it is made."""

    def __init__(self) -> None:
        self._system, self._own = psutil.cpu_times(), psutil.Process().cpu_times()

    def since(self) -> LoadShares | None:
        """Shares since then; None where no time that the system can count has passed."""
        system, own = psutil.cpu_times(), psutil.Process().cpu_times()
        passed = {name: getattr(system, name) - getattr(self._system, name) for name in system._fields}
        # Guests are counted in user and nice already.
        total = sum(seconds for name, seconds in passed.items() if not name.startswith("guest"))
        if total <= 0:
            return None
        mine = sum(getattr(own, name) - getattr(self._own, name) for name in ("user", "system"))
        stolen = passed.get("steal", 0.0)
        idle = passed["idle"] + passed.get("iowait", 0.0)
        others = max(0.0, total - idle - stolen - mine)
        return LoadShares(own=min(1.0, mine / total), others=others / total, stolen=stolen / total)
