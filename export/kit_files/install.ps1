# Installs atlas-edge from this folder alone, without the internet: .\install.ps1 [FOLDER]
param([string]$$To = (Join-Path $$PSScriptRoot "atlas"))
$$ErrorActionPreference = "Stop"
function Stop-Failed([string]$$What) { if ($$LASTEXITCODE -ne 0) { throw "$$What failed" } }
foreach ($$line in Get-Content -LiteralPath (Join-Path $$PSScriptRoot "SHA256SUMS") -Encoding UTF8) {
    $$sum, $$name = $$line -split "  ", 2
    $$found = (Get-FileHash -Algorithm SHA256 -LiteralPath (Join-Path $$PSScriptRoot $$name)).Hash
    if ($$found -ne $$sum) { throw "$$name is damaged: copy the kit again" }
}
py -$python -m venv $$To
Stop-Failed "python -m venv (is Python $python installed?)"
& "$$To\Scripts\python.exe" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --require-hashes ``
    --find-links (Join-Path $$PSScriptRoot "wheels") -r (Join-Path $$PSScriptRoot "requirements.txt")
Stop-Failed "pip install"
foreach ($$bundle in Get-ChildItem -Directory -LiteralPath (Join-Path $$PSScriptRoot "bundles")) {
    & "$$To\Scripts\atlas-export.exe" verify $$bundle.FullName
    Stop-Failed "verify"
}
Write-Output "installed in $$To"
