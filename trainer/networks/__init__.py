"""The networks, as plain modules that know no configuration."""
