"""From a name, folder or module to a target model, checked before it is built."""
