from __future__ import annotations

import pytest

from casting_tune.store.redact import redacted

ENVIRONMENT = {
    "DB_PASSWORD": "hunt",
    "API": "s3cr3t-value",
    "LONGER": "s3cr3t-value-and-more",
    "LEVEL": "1",
}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("no file /srv/people/ada/x", "no file ~/x"),
        ("no file /home/grace/x and /Users/alan/y", "no file ~/x and ~/y"),
        ("token s3cr3t-value-and-more", "token $LONGER"),
        ("token s3cr3t-value", "token $API"),
        ("hunt", "$DB_PASSWORD"),
        ("press-7.plant.example said no to ada", "HOST said no to USER"),
        ("press-7: adamw at level 1", "HOST: adamw at level 1"),
        (
            "(pid=7, ip=10.1.2.30), ip: 10.1.2.3, 192.168.0.4:6379",
            "(pid=7, ip=HOST), ip: HOST, HOST:6379",
        ),
        (
            "127.0.0.1:6379, torch 2.15.0, cublas==12.4.5.8",
            "127.0.0.1:6379, torch 2.15.0, cublas==12.4.5.8",
        ),
    ],
)
def test_a_text_is_kept_without_machine_and_people(text: str, kept: str) -> None:
    assert (
        redacted(
            text, ENVIRONMENT, home="/srv/people/ada", host="press-7.plant.example", user="ada"
        )
        == kept
    )


def test_what_is_everybodys_stays() -> None:
    assert redacted("root cause: /", {}, home="/", host="localhost", user="root") == "root cause: /"
