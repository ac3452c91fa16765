build: dict[str, str | None]
