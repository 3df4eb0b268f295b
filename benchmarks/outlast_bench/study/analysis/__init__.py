"""From the files of a study's runs to measures, estimates and comparisons."""
