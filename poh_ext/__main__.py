"""`python -m poh_ext`: print what was built, what is used and why not more."""

import poh_ext


def main() -> None:
    for key, value in poh_ext.backend_info().items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, item in value.items():
                print(f"  {name}: {item}")
        else:
            print(f"{key}: {value}")


if __name__ == "__main__":
    main()
