"""`python -m mitigate` is `mitigate`."""

from mitigate.cli import main

main()
