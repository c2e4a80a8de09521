"""Which run to take: leaderboards, the verdict, tables, plots and the page."""
