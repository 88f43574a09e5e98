"""`junit.xml`: every budget as a test case, for a CI system that shows those."""

from xml.etree import ElementTree

from atlas_edge.bench.judge.gate import Verdict
from atlas_edge.bench.report.rows import interval_text
from atlas_edge.bench.report.schema import Report


def junit_xml(report: Report) -> str:
    """One suite a candidate, one case a budget; FAIL and INCONCLUSIVE are failures. Without a gate it has no case."""
    checks = () if report.gate is None else report.gate.checks
    missed = sum(check.verdict is not Verdict.PASS for check in checks)
    root = ElementTree.Element("testsuites", name="atlas-bench", tests=str(len(checks)), failures=str(missed))
    for candidate in dict.fromkeys(check.candidate for check in checks):
        own = [check for check in checks if check.candidate == candidate]
        failures = sum(check.verdict is not Verdict.PASS for check in own)
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=candidate,
            tests=str(len(own)),
            failures=str(failures),
            errors="0",
            skipped="0",
            timestamp=report.created_utc.partition("+")[0],
        )
        for check in own:
            case = ElementTree.SubElement(
                suite, "testcase", classname=candidate, name=f"{check.figure} ({check.option})"
            )
            sign = "at most" if check.higher_is_worse else "at least"
            measured = f"{interval_text(check.value, '.5g')}, budget {sign} {check.budget:g}"
            if check.verdict is Verdict.PASS:
                ElementTree.SubElement(case, "system-out").text = measured
                continue
            failure = ElementTree.SubElement(case, "failure", type=check.verdict.value, message=measured)
            failure.text = check.advice
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"
