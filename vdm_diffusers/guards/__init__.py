"""What others give is looked at before it is used: arguments, configurations, folders; and what must not leave is kept back."""
