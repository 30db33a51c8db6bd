"""What [`VDMScheduler`] is made of: chains, the timesteps that it visits, its reverse steps, its options."""
