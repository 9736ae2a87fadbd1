"""Named recipes: each module holds a `CONFIG`, and its docstring says what to expect of it."""
