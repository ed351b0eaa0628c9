"""Measuring: seconds and memory in a process per cell (bench, worker), models side by side (compare), this machine
(doctor, fits, speed), and what their results are shown with (tables, sheet, quality, environment)."""
