-- What back-fills, reports and maintenance need.
SELECT 1;
