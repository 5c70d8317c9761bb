"""Pure torch maths of few-step sampling; knows neither a UNet nor a host."""
