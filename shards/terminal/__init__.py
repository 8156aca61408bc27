"""Terminal output, shared by all commands.

console   options, errors, exit codes, JSON
progress  a bar on a terminal, lines elsewhere
"""
