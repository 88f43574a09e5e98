"""A unit of systemd that may write to its own folders only: systemd.exec(5), systemd.service(5)."""

import getpass
import re
import shlex
from pathlib import PurePosixPath

from atlas_edge.embed.service.plan import ServiceFile, ServicePlan
from atlas_edge.errors import UsageError

_UNIT = """\
# Written by `atlas-embed service`.
[Unit]
Description=atlas-embed: embeddings of the slides that a scanner writes
Wants=network-online.target
After=network-online.target remote-fs.target
# A share that is not there yet is waited for, however long that takes.
StartLimitIntervalSec=0

[Service]
Type=exec
User={user}
ExecStart={command}
Restart=on-failure
RestartSec=30
# Told to stop, it gives the slide in work back and says so by this code.
SuccessExitStatus=130
TimeoutStopSec=120
UMask=0027
# What can be made again, such as compiled models.
CacheDirectory={name}
Environment=XDG_CACHE_HOME=%C/{name} HF_HUB_OFFLINE=1

# Only these are written to.
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={writes}
PrivateTmp={private_tmp}
NoNewPrivileges=yes
CapabilityBoundingSet=
RestrictSUIDSGID=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictNamespaces=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
{network}
# Left out: PrivateDevices (a GPU is a device) and MemoryDenyWriteExecute (OpenVINO compiles kernels as it runs).

[Install]
WantedBy=multi-user.target
"""
_ALONE = """\
# The page is for this machine, and nothing else is spoken to; mounted shares are the system's.
IPAddressDeny=any
IPAddressAllow=localhost"""
_TALKS = "# --on-quarantine may have to reach other machines, so that IPAddressDeny=any is left out."


def unit(plan: ServicePlan, user: str | None) -> ServiceFile:
    """The unit.

    Args:
        plan: What it runs.
        user: Whom it runs as; whoever asks when None.

    Raises:
        UsageError: It would run as root, or a path is none that systemd takes.
    """
    user = user or getpass.getuser()
    if user == "root":
        raise UsageError("the service would run as root", hint="add --user NAME, somebody who may read the drop folder")
    if re.fullmatch(r"[A-Za-z_][\w.@-]*\$?", user) is None:
        raise UsageError(f"--user {user} is no name of a user", hint="see: getent passwd")
    if set("'\"\\") & set(plan.arguments[0]):
        raise UsageError(
            f"systemd starts no program by the name {plan.arguments[0]}", hint="install atlas-edge elsewhere"
        )
    everything = (*plan.arguments, *plan.reads, *plan.writes)
    temporary = any(PurePosixPath(place) in PurePosixPath(path).parents for path in everything for place in _TMP)
    text = _UNIT.format(
        user=user,
        name=plan.name,
        command=" ".join(
            [_quoted(plan.arguments[0]), *(_quoted(word).replace("$", "$$") for word in plan.arguments[1:])]
        ),
        writes=" ".join(map(_quoted, plan.writes)),
        private_tmp="no" if temporary else "yes",
        network=_TALKS if plan.talks else _ALONE,
    )
    name = f"{plan.name}.service"
    steps = [
        *(f"install -d -o {user} -m 750 {shlex.quote(folder)}" for folder in plan.writes),
        f"cp {name} /etc/systemd/system/",
        f"systemctl daemon-reload && systemctl enable --now {plan.name}",
        f"journalctl -u {plan.name}",
    ]
    return ServiceFile(name=name, data=text.encode(), steps=steps, quoted=lambda path: shlex.quote(str(path)))


_TMP = ("/tmp", "/var/tmp")


def _quoted(word: str) -> str:
    """One word of a line of a unit: systemd.syntax(7), "Quoting"; `%` begins a specifier."""
    escaped = word.replace("\\", r"\\").replace('"', r"\"").replace("%", "%%")
    return f'"{escaped}"'
