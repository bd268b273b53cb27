"""The page: figures, pictures of cases and the template; a function of files that the stages write anyway."""
