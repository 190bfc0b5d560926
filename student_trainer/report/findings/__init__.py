"""What is wrong with a run, from its metrics alone. Pure: no files, no torch.

``held_out`` and ``steps`` have one function for each finding, ``find`` lists them, and
``thresholds`` has every number that they compare with.
"""

from student_trainer.report.findings.course import Course, Finding, Level
from student_trainer.report.findings.find import CHECKS, find

__all__ = ["CHECKS", "Course", "Finding", "Level", "find"]
