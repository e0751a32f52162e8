"""Leads from files: read by the meaning of their columns, with every refused row named."""

from campaign_pipeline.leads.columns import FIELDS
from campaign_pipeline.leads.model import BUSINESS_FIELDS, PRIORITIES, Lead, LeadsFileError, Problem
from campaign_pipeline.leads.reading import LeadsFile, read_leads

__all__ = ["BUSINESS_FIELDS", "FIELDS", "PRIORITIES", "Lead", "LeadsFile", "LeadsFileError", "Problem", "read_leads"]
