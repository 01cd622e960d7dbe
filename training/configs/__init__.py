"""The training configs that ship with the package."""
