"""The YAML files of `configs/` as typed, frozen values."""
