"""The streaming conversion of a checkpoint: what is planned (conversion_plan) and written where (layout), by which
measured inputs (calibration_set, calibrate), row by row (convert), into a folder that is complete or absent (partial),
as the user asks (quantizer)."""
