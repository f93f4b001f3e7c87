"""`python -m mitigate` is `mitigate`."""

from mitigate.cli.app import main

main()
