"""`python -m campaign_pipeline.sandbox`: reads flags and serves."""

from campaign_pipeline.sandbox.command import main

if __name__ == "__main__":
    main()
