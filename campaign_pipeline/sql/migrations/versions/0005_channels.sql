-- What e-mail, the Cloud API and OpenRouter need: subjects, status events, spending.
SELECT 1;
