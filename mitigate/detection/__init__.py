"""Find the memorized tokens: signals -> scores -> spans -> audit."""
