"""The reader of lead files: it recognises columns by their meaning and reports every row that it leaves out."""

from campaign_pipeline.core.texts import BUSINESS_FIELDS
from campaign_pipeline.leads.columns import FIELDS
from campaign_pipeline.leads.model import PRIORITIES, Lead, LeadsFileError, Problem
from campaign_pipeline.leads.reading import LeadsFile, read_leads

__all__ = ["BUSINESS_FIELDS", "FIELDS", "PRIORITIES", "Lead", "LeadsFile", "LeadsFileError", "Problem", "read_leads"]
