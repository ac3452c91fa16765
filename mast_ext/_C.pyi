build: dict[str, str | None]
kept_elements: int

def cpu_isa() -> str: ...
