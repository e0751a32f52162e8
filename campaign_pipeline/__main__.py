"""`python -m campaign_pipeline`: the command line, also where the folder of console scripts is not on the path."""

from campaign_pipeline.cli import main

if __name__ == "__main__":
    main()
