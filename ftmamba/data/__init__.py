"""From raw tables to encoded batches; import from the module that has the thing."""
