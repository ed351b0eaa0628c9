"""The streaming conversion of a checkpoint: what is written where (layout), from what was seen (calibrate), row by row
(convert), into a folder that is whole or not there (partial), at the user's word (quantizer)."""
