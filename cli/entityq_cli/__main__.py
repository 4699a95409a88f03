"""`python -m entityq_cli`, which is how a worker starts its runners."""

from entityq_cli.main import main

if __name__ == "__main__":
    main()
