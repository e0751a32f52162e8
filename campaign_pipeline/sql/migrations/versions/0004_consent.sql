-- Suppression, consent records, number checks.
SELECT 1;
