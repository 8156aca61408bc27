"""Terminal output, shared by all commands.

console   options, errors, exit codes, JSON
progress  progress bar on a terminal, log lines otherwise
"""
