"""`python -m casting_tune.sweep NAME` is `casting-tune sweep NAME`."""

from casting_tune.cli.main import sweep_alone

if __name__ == "__main__":
    sweep_alone()
