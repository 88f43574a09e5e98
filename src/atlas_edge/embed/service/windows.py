"""A script that registers the watcher as a task of Windows' own scheduler: nothing has to be downloaded."""

import subprocess

from atlas_edge.embed.service.plan import ServiceFile, ServicePlan

# Curly quotes end a literal, too: about_Quoting_Rules, and System.Management.Automation's own list of them.
_QUOTES = "'\u2018\u2019\u201a\u201b"

_SCRIPT = """\
# Written by `atlas-embed service`. In PowerShell, as administrator:
#   Set-ExecutionPolicy -Scope Process Bypass; .\\{name}.ps1
# Where the drop folder is a share, as somebody who may read it: .\\{name}.ps1 -Credential (Get-Credential)
# Stop: Stop-ScheduledTask {name}. Remove: Unregister-ScheduledTask {name}.
#Requires -RunAsAdministrator
param([pscredential] $Credential)
$ErrorActionPreference = 'Stop'
$name = '{name}'
$folders = @({writes})

$action = New-ScheduledTaskAction -Execute {program} -Argument {arguments}
$triggers = @(
    (New-ScheduledTaskTrigger -AtStartup),
    # However it ended, it is started again within five minutes; while it runs, nothing happens.
    (New-ScheduledTaskTrigger -Once -At (Get-Date) -RepetitionInterval (New-TimeSpan -Minutes 5))
)
$settings = New-ScheduledTaskSettingsSet -MultipleInstances IgnoreNew -ExecutionTimeLimit ([timespan]::Zero) `
    -RestartCount 3 -RestartInterval (New-TimeSpan -Minutes 1) -StartWhenAvailable `
    -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries
$task = @{{ TaskName = $name; Action = $action; Trigger = $triggers; Settings = $settings; Force = $true }}

foreach ($folder in $folders) {{ New-Item -ItemType Directory -Force -Path $folder | Out-Null }}
if ($Credential) {{
    Register-ScheduledTask @task -User $Credential.UserName -Password $Credential.GetNetworkCredential().Password
}} else {{
    # LOCAL SERVICE: few rights on this machine, and none on others.
    $principal = New-ScheduledTaskPrincipal -UserId 'NT AUTHORITY\\LOCAL SERVICE' -LogonType ServiceAccount
    foreach ($folder in $folders) {{
        icacls $folder /grant '*S-1-5-19:(OI)(CI)M' | Out-Null
        if ($LASTEXITCODE -ne 0) {{ throw "icacls failed for $folder" }}
    }}
    Register-ScheduledTask @task -Principal $principal
}}
Start-ScheduledTask -TaskName $name
"""


def script(plan: ServicePlan) -> ServiceFile:
    """The script: UTF-8 with a mark, without which PowerShell 5 reads another encoding."""
    text = _SCRIPT.format(
        name=plan.name,
        writes=", ".join(map(_literal, plan.writes)),
        program=_literal(plan.arguments[0]),
        arguments=_literal(subprocess.list2cmdline(plan.arguments[1:])),
    )
    name = f"{plan.name}.ps1"
    steps = [f"powershell -ExecutionPolicy Bypass -File {name}"]
    data = text.replace("\n", "\r\n").encode("utf-8-sig")
    return ServiceFile(name=name, data=data, steps=steps, quoted=lambda path: subprocess.list2cmdline([str(path)]))


def _literal(text: str) -> str:
    """A string of PowerShell in which nothing is expanded."""
    for quote in _QUOTES:
        text = text.replace(quote, 2 * quote)
    return f"'{text}'"
