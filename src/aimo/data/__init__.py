"""Problems: where they come from, and how they become rows to train on."""
